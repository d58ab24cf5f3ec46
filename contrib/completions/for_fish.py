"""Completions for fish: a line for each option of a program."""

from __future__ import annotations

from programs import DIRECTORIES, FILES, WORDS, Option, Program

FOLDER = "fish"
_HEAD = """\
# Completions of {name} for fish; made by contrib/completions/make_completions.py.

"""
_NAMES = """\
# The words that are no options, the program's name and that of the command among them.
function __qmtpq_words
    set -l skip ''
    for word in (commandline -opc)
        if test -n "$skip"
            set skip ''
        else if contains -- $word {with_value}
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
            and not contains -- $words[2] {none}
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

"""


def build(program: Program) -> tuple[str, str]:
    """Return the name of the program's file, and what is in it."""
    parts = [_HEAD.format(name=program.name)]
    complete = f"complete -c {program.name}"
    if program.commands:
        with_value = [n for o in program.options if o.kind is not None for n in o.names]
        none = " ".join(program.without_names)
        parts.append(_NAMES.format(with_value=" ".join(with_value), none=none))
        parts += [
            f"{complete} -f -n '__qmtpq_is_next command' -a {name} -d {_quoted(text)}\n"
            for name, text in program.commands
        ]
        parts += [
            f"{complete} -f -n '__qmtpq_is_next directory' -a '(__fish_complete_directories)'\n",
            f"{complete} -f -n '__qmtpq_is_next name' -a '(__qmtpq_names)'\n",
        ]
    elif program.takes_directory:
        parts.append(f"{complete} -f -a '(__fish_complete_directories)'\n")
    else:
        parts.append(f"{complete} -f\n")
    parts += [_line(complete, option) for option in program.options]
    return f"{program.name}.fish", "".join(parts)


def _line(complete: str, option: Option) -> str:
    names = " ".join(
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
    )
    return f"{complete} {names}{_value(option)} -d {_quoted(option.help)}\n"


def _value(option: Option) -> str:
    if option.kind is None:
        return ""
    if option.kind == FILES:
        return " -r -F"
    if option.kind == DIRECTORIES:
        return " -x -a '(__fish_complete_directories)'"
    if option.kind == WORDS:
        return f" -x -a {_quoted(' '.join(option.words))}"
    return " -x"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
