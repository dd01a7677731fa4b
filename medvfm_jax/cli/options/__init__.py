"""What each command can be asked for, without the code that does it: help and a wrong option are answered at once."""
