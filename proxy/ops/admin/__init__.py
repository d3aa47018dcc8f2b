"""The admin listener: health, statistics, switches, and who may reach them."""
