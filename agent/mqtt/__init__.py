"""MQTT: `link` is one connection to the broker, `session` keeps one up, `gateway` speaks topics."""
