"""From rows to tables, pictures, findings and reports."""
