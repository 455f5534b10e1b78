"""The forecasts: counts in (`series`), experts (`experts`), who is trusted for whom (`router`), the weighted answer (`mixture`)."""
