"""The verbs of the command line, grouped by the artefact they are about; `mae_export.cli` registers them."""
