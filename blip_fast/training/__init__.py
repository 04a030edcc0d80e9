"""Training: loop, schedules, seeding and progress."""
