"""The server: HTTP, WebSocket and server-sent events over the runtime's own objects, and the page."""
