"""The table of restarts, the loop that steps it, and what a fit returns."""
