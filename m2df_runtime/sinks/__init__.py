"""Where events go besides standard output: a broker, a web server, clips, an annotated copy; and their metrics."""
