"""The link to the broker: messages as bytes on topics, and blobs on top of them. Nothing here knows what a job is."""
