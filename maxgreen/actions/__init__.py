"""What people do: the list of actions that the command line and pages are two hands on."""
