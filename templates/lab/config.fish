# fish in a node of the lab: as the user has it, and the prompt says where.
functions --copy fish_prompt _prompt_elsewhere
function fish_prompt
    echo -n "($XDPLAB_NODE) "
    _prompt_elsewhere
end
