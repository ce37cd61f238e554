"""Do experts of pictures, with a gate, equal one model of all pictures?"""
