"""How clients' bytes become requests and answers become bytes again; calls ``flow`` and decides nothing itself."""
