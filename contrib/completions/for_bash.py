"""Completions for bash: a function for each program, without the package bash-completion."""

from __future__ import annotations

from programs import DIRECTORIES, FILES, WORDS, Option, Program

FOLDER = "bash"
_HEAD = """\
# Completions of {name} for bash; made by contrib/completions/make_completions.py.

{function}() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=''
    COMPREPLY=()
    [ "$COMP_CWORD" = 0 ] || prev=${{COMP_WORDS[COMP_CWORD - 1]}}
    # --flag=value is three words.
    if [ "$cur" = '=' ]; then
        cur=''
    elif [ "$prev" = '=' ] && [ "$COMP_CWORD" -gt 2 ]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    case $prev in
"""
_ENTRY = """\
        {names})
            {what}
            return
            ;;
"""
_OPTIONS = """\
    esac
    if [[ $cur = -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '{options}' -- "$cur")
        return
    fi
"""
_TAIL = """\
}}

complete -F {function} {name}
"""
_PATHS = """\
mapfile -t COMPREPLY < <(compgen {how} -- "$cur")
            compopt -o filenames 2>/dev/null"""
_DIRECTORY = """\
    mapfile -t COMPREPLY < <(compgen -d -- "$cur")
    compopt -o filenames 2>/dev/null
"""
#: COMMAND, DIR and NAME of `qmtpq`: which of them comes next depends on the words before.
_QUEUE = """\
    local command='' file='' index word
    local -a names=() options=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${{COMP_WORDS[index]}}
        case $word in
            {with_value})
                [ "${{COMP_WORDS[index + 1]}}" != '=' ] || ((index++))
                ((index++))
                [ "$word" != --config ] || file=${{COMP_WORDS[index]}}
                ;;
            -*) ;;
            *)
                if [ -n "$command" ]; then names+=("$word"); else command=$word; fi
                ;;
        esac
    done
    if [ -z "$command" ]; then
        mapfile -t COMPREPLY < <(compgen -W '{commands}' -- "$cur")
        return
    fi
    if [ -n "$file" ]; then
        file=${{file//\\\\/}}
        options=(--config "${{file/#~\\//$HOME/}}")
    elif [ "${{#names[@]}}" = 0 ]; then
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
        compopt -o filenames 2>/dev/null
        return
    else
        word=${{names[0]//\\\\/}}
        options=(-- "${{word/#~\\//$HOME/}}")
    fi
    case $command in
        {none}) return ;;
        resend) options=(--failed "${{options[@]}}") ;;
        release) options=(--held "${{options[@]}}") ;;
    esac
    # Without what a mail reader has put behind the name: a colon parts words here.
    # Others choose the names, and `compgen -W` would run the commands in them.
    while IFS= read -r word; do
        [[ $word != "${{cur//\\\\/}}"* ]] || COMPREPLY+=("$(printf %q "$word")")
    done < <(qmtpq list --names "${{options[@]}}" 2>/dev/null | sed 's/:.*//')
"""


def build(program: Program) -> tuple[str, str]:
    """Return the name of the program's file, and what is in it."""
    function = "_" + program.name.replace("-", "_")
    parts = [_HEAD.format(name=program.name, function=function)]
    parts += _entries(program)
    names = [name for option in program.options for name in option.names]
    parts.append(_OPTIONS.format(options=" ".join(names)))
    if program.commands:
        with_value = [o for o in program.options if o.kind is not None]
        parts.append(
            _QUEUE.format(
                with_value=" | ".join(name for o in with_value for name in o.names),
                commands=" ".join(name for name, _ in program.commands),
                none=" | ".join(program.without_names),
            )
        )
    elif program.takes_directory:
        parts.append(_DIRECTORY)
    parts.append(_TAIL.format(name=program.name, function=function))
    return program.name, "".join(parts)


def _entries(program: Program) -> list[str]:
    """Return what is done after an option with a value, for all that have the same."""
    names: dict[str, list[str]] = {}
    for option in program.options:
        if option.kind is not None:
            names.setdefault(_what(option), []).extend(option.names)
    return [_ENTRY.format(names=" | ".join(names[what]), what=what) for what in names]


def _what(option: Option) -> str:
    if option.kind == DIRECTORIES:
        return _PATHS.format(how="-d")
    if option.kind == FILES:
        return _PATHS.format(how="-f")
    if option.kind == WORDS:
        return f"mapfile -t COMPREPLY < <(compgen -W '{' '.join(option.words)}' -- \"$cur\")"
    return ":"  # nothing that a shell could know
