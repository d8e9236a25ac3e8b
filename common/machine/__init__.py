"""What a script runs on: the device, the processes, the signals."""
