"""Handing mail on to another mail server (SMTP, LMTP) or to a command.

    destination -> next_server -> smtp_transaction -> smtp_client -> the next server
                -> command

`replies`, `verdicts` and `mail_text` know bytes only; `smtp_client` is the only
importer of smtplib.
"""
