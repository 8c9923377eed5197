"""Using what was made: finished students beside their teachers."""
