"""How things travel: topics, messages, codec, chunks, tensors. Knows neither torch nor MQTT."""
