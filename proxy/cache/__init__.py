"""Where rows are kept: the memory tier, the Redis tier, their stored form; knows no vendor and no HTTP."""
