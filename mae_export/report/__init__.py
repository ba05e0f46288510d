"""Figures and summaries made from artefacts."""
