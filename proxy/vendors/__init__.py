"""What the vendors' requests and answers mean, one file per operation; pure: no clock, no socket, no store."""
