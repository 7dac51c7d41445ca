# zsh reads this instead of the user's own, as ZDOTDIR says.
[ ! -r ~/.zshenv ] || . ~/.zshenv
