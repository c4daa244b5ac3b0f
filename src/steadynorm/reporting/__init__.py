"""Turn records into reports: tables, figures, claims, a page and a notebook."""
