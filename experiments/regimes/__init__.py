"""When do experts win, by the amount of data, the number of experts and the partition?"""
