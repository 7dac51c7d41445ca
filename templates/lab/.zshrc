# zsh in a node of the lab: as the user has it, and the prompt says where.
ZDOTDIR=$HOME
[ ! -r ~/.zshrc ] || . ~/.zshrc
PS1="($XDPLAB_NODE) ${PS1-%# }"
