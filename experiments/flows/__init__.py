"""Are flows trained apart, with a gate, as good as one flow, without autoregression?"""
