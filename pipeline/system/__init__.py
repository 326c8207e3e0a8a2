"""What lies below everything: configuration, errors, digests of files, processes, signals, locks, hardware."""
