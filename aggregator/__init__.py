"""The lab server: coordinator, averaging, affinity, splitting, bundles, journal, and the service that joins them."""
