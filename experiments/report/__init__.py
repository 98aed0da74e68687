"""Tables, pictures, findings and reports, from the rows of a comparison."""
