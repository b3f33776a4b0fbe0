def draw(x):
    pass


def write():
    pass
