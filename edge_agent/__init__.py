"""The device: a daemon without torch, a trainer process with it, power meters, data, bundles and inference."""
