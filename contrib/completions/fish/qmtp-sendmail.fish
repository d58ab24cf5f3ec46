# Completions of qmtp-sendmail for fish; made by contrib/completions/make_completions.py.

complete -c qmtp-sendmail -f
complete -c qmtp-sendmail -s b -x -a 'p m i' -d '-bp: list the queue; -bm: send'
complete -c qmtp-sendmail -s F -x -d 'the sender\'s name, where From is missing'
complete -c qmtp-sendmail -l help -d 'show this, and exit'
complete -c qmtp-sendmail -s i -d 'a lone dot does not end the message; -oi'
complete -c qmtp-sendmail -s o -x -d '-oi is -i'
complete -c qmtp-sendmail -s q -d 'try to send what waits now'
complete -c qmtp-sendmail -s f -s r -x -d 'envelope sender; \'\' for none'
complete -c qmtp-sendmail -s t -d 'recipients from To, Cc and Bcc, too'
complete -c qmtp-sendmail -l version -d 'show program\'s version number and exit'
