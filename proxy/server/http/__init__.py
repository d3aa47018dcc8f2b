"""The HTTP listeners: connections, the fast lane, bodies, WebSocket."""
