"""Answers that writes make stale: the generations that they depend on, and how Redis learns of a write."""
