# SPDX-License-Identifier: MIT
# Completion of rnx in bash. rnx says itself what may stand at the cursor, three lines a word: its
# kind, the word, its description. That is click's form for zsh; all three shells use it, because
# it is the one that stays the same over click's releases.

_rnx() {
    local IFS=$' \t\n' kind word
    COMPREPLY=()
    while IFS= read -r kind && IFS= read -r word && IFS= read -r _; do
        case $kind in
        plain) COMPREPLY+=("$word") ;;
        file) compopt -o default ;;
        esac
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" \
        _RNX_COMPLETE=zsh_complete "$1" 2>/dev/null)
}

complete -o nosort -F _rnx rnx
