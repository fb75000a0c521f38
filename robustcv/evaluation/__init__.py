"""What is concluded: methods run over images, counted and checked, into records."""
