"""What people look at: films, pages, figures and contact sheets, drawn by one skeleton painter."""
