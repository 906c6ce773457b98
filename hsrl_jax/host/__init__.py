"""What a process owes the machine it runs on."""
