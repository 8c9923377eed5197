"""How near a student is to its teacher: by the answers that both generate, and by their next-token distributions."""
