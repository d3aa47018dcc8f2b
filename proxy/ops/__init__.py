"""What operators see and switch: modes, metrics, logs, health, the admin API, the processes."""
