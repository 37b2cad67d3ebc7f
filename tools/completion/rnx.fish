# SPDX-License-Identifier: MIT
# Completion of rnx in fish. rnx says itself what may stand at the cursor, three lines a word: its
# kind, the word, its description ("_" for none). That is click's form for zsh, which stays the same
# over click's releases.

function __rnx_complete
    set -l before (commandline -opc)
    set -l words (string escape -- $before (commandline -ct))
    set -lx COMP_WORDS (string join ' ' -- $words)
    set -lx COMP_CWORD (count $before)
    set -lx _RNX_COMPLETE zsh_complete
    $before[1] 2>/dev/null | while read -l kind; read -l word; read -l description
        switch $kind
            case plain
                if test "$description" = _
                    printf '%s\n' $word
                else
                    printf '%s\t%s\n' $word $description
                end
            case file
                __fish_complete_path $word
        end
    end
end

complete --command rnx --no-files --keep-order --arguments '(__rnx_complete)'
