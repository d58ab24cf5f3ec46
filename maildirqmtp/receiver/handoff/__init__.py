"""Handing mail on to another mail server (SMTP, LMTP) or to a command.

    destination -> smtp_server | command -> smtp_transaction -> smtp_client -> the next server

`replies`, `verdicts` and `mail_text` know bytes only; `smtp_client` is the only
importer of smtplib.
"""
