"""Completions for zsh: a file for each program, to be found on `fpath`."""

from __future__ import annotations

from programs import DIRECTORIES, FILES, WORDS, Option, Program

FOLDER = "zsh"
_HEAD = """\
#compdef {name}
# Completions of {name} for zsh; made by contrib/completions/make_completions.py.

"""
_NAMES = """\
_qmtpq_directory_or_name() {{
    if [[ -n ${{opt_args[--config]}} ]]; then _qmtpq_names; else _files -/; fi
}}

_qmtpq_names() {{
    # What is typed is no pattern: a qualifier in the name of a file would run commands.
    local given
    local -a names options match mbegin mend
    if [[ -n ${{opt_args[--config]}} ]]; then
        # _arguments puts backslashes before colons and backslashes.
        given=${{(Q)opt_args[--config]//(#b)\\\\([\\\\:])/$match[1]}}
        options=(--config "${{given/#\\~\\//$HOME/}}")
    else
        given=${{(Q)line[2]}}
        options=(-- "${{given/#\\~\\//$HOME/}}")
    fi
    case $line[1] in
        ({none}) return 1 ;;
        (resend) options=(--failed $options) ;;
        (release) options=(--held $options) ;;
    esac
    # Without what a mail reader has put behind the name.
    names=(${{${{(f)"$(qmtpq list --names $options 2>/dev/null)"}}%%:*}})
    compadd -a names
}}

"""


def build(program: Program) -> tuple[str, str]:
    """Return the name of the program's file, and what is in it."""
    parts = [_HEAD.format(name=program.name)]
    specs = [spec for option in program.options for spec in _specs(option)]
    if program.commands:
        parts.append(_NAMES.format(none="|".join(program.without_names)))
        known = " ".join(f'{name}\\:"{_escaped(text)}"' for name, text in program.commands)
        specs += [f"'1:command:(({known}))'"]
        specs += ["'2:directory:_qmtpq_directory_or_name'", "'*:name:_qmtpq_names'"]
        parts.append("local -a line\nlocal -A opt_args\n")
    elif program.takes_directory:
        specs += ["'1:directory:_files -/'", "'*:argument: '"]
    else:
        specs += ["'*:argument: '"]
    parts.append(" \\\n    ".join(["_arguments -s -S", *specs]) + "\n")
    return f"_{program.name}", "".join(parts)


def _specs(option: Option) -> list[str]:
    """Return what `_arguments` wants of an option, for each of its names."""
    others = " ".join(option.names) if len(option.names) > 1 else ""
    before = "*" if option.repeats else f"({others})" if others else ""
    return [f"'{before}{_name(name, option)}[{_escaped(option.help)}]{_value(option)}'"
            for name in option.names]  # fmt: skip


def _name(name: str, option: Option) -> str:
    if option.kind is None:
        return name
    return f"{name}=" if name.startswith("--") else f"{name}+"


def _value(option: Option) -> str:
    if option.kind is None:
        return ""
    what = {DIRECTORIES: "_files -/", FILES: "_files"}.get(option.kind, " ")
    if option.kind == WORDS:
        what = f"({' '.join(_escaped(word) for word in option.words)})"
    return f":{_escaped(option.metavar)}:{what}"


def _escaped(text: str) -> str:
    """Return a text for a specification in single quotes."""
    for char in "\\[]:":
        text = text.replace(char, f"\\{char}")
    return text.replace('"', '\\"').replace("'", "'\\''")
