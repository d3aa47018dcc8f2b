"""What the proxy tells of itself: log lines and metrics, none of which holds a secret or a text."""
