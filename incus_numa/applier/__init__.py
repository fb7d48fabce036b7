"""Carries out steps, or says what it would do."""
