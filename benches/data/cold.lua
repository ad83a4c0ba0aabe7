-- Each request has a token that nobody has ever seen: what begins so, then so many digits that all tokens are equally long.
local prefix, number

function init(arguments)
    prefix, number = arguments[1], 0
end

function request()
    number = number + 1
    return wrk.format("GET", nil, { authorization = string.format("Bearer %s%016x", prefix, number) })
end
