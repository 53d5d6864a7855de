"""Spans of launches and of requests, for OpenTelemetry: what they say, and how they get to a collector."""
