"""Questions about an accelerator, one command each; README.md says in which order."""
