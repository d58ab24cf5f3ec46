# Completions of qmtpq for fish; made by contrib/completions/make_completions.py.

# The words that are no options, the program's name and that of the command among them.
function __qmtpq_words
    set -l skip ''
    for word in (commandline -opc)
        if test -n "$skip"
            set skip ''
        else if contains -- $word --bounce-via --config --failed-maildir --from --hostname --limit --older --recipient --sendmail --to --why
            set skip yes
        else if not string match -q -- '-*' $word
            echo $word
        end
    end
end

# The file of --config, where that is given.
function __qmtpq_config
    set -l words (commandline -opc)
    set -l at (contains -i -- --config $words)
    and test $at -lt (count $words)
    and echo $words[(math $at + 1)]
    or string replace -f -- --config= '' $words
end

function __qmtpq_is_next
    set -l words (__qmtpq_words)
    set -l known (count $words)
    set -q words[2]
    and test -n "$(__qmtpq_config)"
    and set known (math $known + 1)
    switch $argv[1]
        case command
            test $known -eq 1
        case directory
            test $known -eq 2
        case name
            test $known -gt 2
            and not contains -- $words[2] summary flush
    end
end

function __qmtpq_names
    set -l words (__qmtpq_words)
    set -l options -- (string replace -r '^~/' $HOME/ -- $words[3])
    set -l file (__qmtpq_config)
    test -n "$file"
    and set options --config (string replace -r '^~/' $HOME/ -- $file)
    switch $words[2]
        case resend
            set options --failed $options
        case release
            set options --held $options
    end
    # Without what a mail reader has put behind the name.
    qmtpq list --names $options 2>/dev/null | string replace -r ':.*' ''
end

complete -c qmtpq -f -n '__qmtpq_is_next command' -a list -d 'list what waits and what has failed, oldest first, and why'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a summary -d 'list how many, and the oldest, by recipient domain and reason'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a show -d 'show all that is known of messages, and their headers'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a drop -d 'remove messages for good, telling nobody; asks, unless --yes is given'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a bounce -d 'tell the senders now, and remove the messages; asks, as drop does'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a resend -d 'put failed messages back into the queue, to those who failed'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a hold -d 'have no forwarder send messages until they are released'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a release -d 'let held messages go, and have the running daemon try them now'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a retry -d 'have the running daemon try all that waits now, if NAME is there'
complete -c qmtpq -f -n '__qmtpq_is_next command' -a flush -d 'have the running daemon try all that waits now'
complete -c qmtpq -f -n '__qmtpq_is_next directory' -a '(__fish_complete_directories)'
complete -c qmtpq -f -n '__qmtpq_is_next name' -a '(__qmtpq_names)'
complete -c qmtpq -l all -d 'change all messages, in place of names and filters'
complete -c qmtpq -l bounce-via -x -a 'sendmail server maildir:' -d 'bounce: sendmail, server or maildir:DIR (sendmail)'
complete -c qmtpq -l config -r -F -d 'the maildirs of the routes in a file of maildirqmtp\'s'
complete -c qmtpq -l cur -d 'look at what is in cur/, too'
complete -c qmtpq -l failed -d 'only those that were refused'
complete -c qmtpq -l failed-maildir -x -a '(__fish_complete_directories)' -d 'not DIR/.Failed, but this one'
complete -c qmtpq -l from -x -d 'only from ADDRESS or @DOMAIN; \'\' is <>'
complete -c qmtpq -l held -d 'only those that cannot be sent as they are, or are on hold'
complete -c qmtpq -s h -l help -d 'show this help message and exit'
complete -c qmtpq -l hostname -x -d 'bounce: name in bounces (this host\'s full name)'
complete -c qmtpq -l json -d 'one JSON object a line'
complete -c qmtpq -l limit -x -d 'list so many (100 on a terminal)'
complete -c qmtpq -l names -d 'list names only, one a line, as shells complete them'
complete -c qmtpq -l older -x -d 'only those that came TIME ago or earlier'
complete -c qmtpq -l recipient -x -d 'resend to ADDRESS instead; may be repeated'
complete -c qmtpq -l sendmail -r -F -d 'bounce: run as COMMAND -i -f \'\' -- SENDER (/usr/sbin/sendmail)'
complete -c qmtpq -l summary -d 'list counts by recipient domain and reason'
complete -c qmtpq -l to -x -d 'only messages to ADDRESS, or to @DOMAIN'
complete -c qmtpq -l version -d 'show program\'s version number and exit'
complete -c qmtpq -l waiting -d 'only those that wait to be sent'
complete -c qmtpq -l why -x -d 'only those with TEXT in their reason'
complete -c qmtpq -l yes -d 'drop or bounce without asking'
