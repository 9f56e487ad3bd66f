"""A report as one page that needs nothing else: `document` puts it together, `serve` keeps it up to
date."""
