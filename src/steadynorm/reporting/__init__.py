"""From a record to something that a person looks at: tables, figures, claims, a page, a notebook."""
