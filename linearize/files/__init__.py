"""Files and folders that are whole or not there, whoever stops when; and the hub."""
